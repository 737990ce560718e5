"""The schema's history. `farm.db.migrate` runs it on every start."""
