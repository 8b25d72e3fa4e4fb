"""Sources of captions: a language model, a server or a file; and the filters of what they write."""
