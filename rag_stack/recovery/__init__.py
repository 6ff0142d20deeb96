"""Backup points, what is restored from them, and the drills that measure how long bad days take."""
