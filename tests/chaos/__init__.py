"""A farm under the supervisor whose processes are killed at random while batches run; then every row is audited."""
