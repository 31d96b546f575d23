"""What a rollout costs and what it risks."""
