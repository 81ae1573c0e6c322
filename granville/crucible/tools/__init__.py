"""What a workflow may call beside models."""
