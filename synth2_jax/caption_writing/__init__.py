"""Who writes captions, and how they are asked to."""
