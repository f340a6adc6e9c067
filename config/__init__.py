"""Typed settings: schema, loading, profiles. Nothing else."""
