"""One file a stage; each has `run(config, workdir)`, and main.py runs it."""
