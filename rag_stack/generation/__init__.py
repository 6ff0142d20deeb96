"""The generator: from a published model to a running vLLM.

model_import      a model from elsewhere becomes a published artifact
conversion        GGUF to the safetensors that vLLM reads
engine_settings   the release's engine arguments, checked against vLLM's own
kv_settings       those of the cache for keys and values: what the platform supports, how many tokens fit
memory_budget     what a replica holds of its memory, and what is left for that cache; replica_parts: by the manifests
worker            vLLM's worker, timed: device, weights, KV cache, warm-up
weights, loader   read ahead of the engine, and behind that into it
compile_cache     what vLLM compiles is kept with the node's cache

The engine's processes are copies of one that has imported already:

fork_start        starts that one, and has multiprocessing ask it
fork_server       what it does: import, fork, tell how each ended
launcher          stands where a new Python would; becomes one when nothing forks for it
fork_child        what a copy does to be like a new process
birth             what it knows of how it began, for the report of its start

tokenizer         counts tokens as the engine will
"""
