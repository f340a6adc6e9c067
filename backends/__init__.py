"""Call one engine, launch one engine, know what this machine can run."""
