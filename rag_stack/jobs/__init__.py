"""Work that is done once and published: building index versions."""
