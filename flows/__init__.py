"""What happens, in which order: Prefect flows, the command line, deployments. No work of its own."""
