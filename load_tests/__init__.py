"""The benchmark: us, our peers and nginx in one run, over one mock provider (`README.md`)."""
