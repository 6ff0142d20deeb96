"""Releases as published versions: what is pinned together, what serves, and how one takes over from another.

pinned      a release with every version and digest filled in
"""
