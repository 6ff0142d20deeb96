"""Vector stores and files made over HTTP: their state on the object store, and nothing else.

store.py     what one store is, as frozen values, and every change to it as a pure step
register.py  the stores of an object store: read, listed, and changed by compare-and-set
files.py     the uploaded files
"""
