"""Scale to zero, level 2: the whole RayService is suspended while nobody asks, and woken by the first who does.

A suspended RayService has no pods and no Services, so clients talk to the activator's. In the order of a request:

    door         what comes in: passed on, held or answered here
    use          how much is under way, and for how long nothing was
    presence     the Lease: one activator may suspend, and only while all of them are quiet
    upstream     the RayService's own Service
    wake         the patch that wakes, once for any number of requests, and how long that takes
    sleep        the patch that suspends
    watch        the newest RayService, whatever the API server does
    ray_service  what its fields say: serving, suspending, suspended, waking
    kube_api, cluster, permissions    the API server, how it is found, and all that it is asked

No Ray, no vLLM, no FAISS: a pod of it needs a tenth of a core and 256 MiB. Started by `python -m rag_stack.activator`.
"""
