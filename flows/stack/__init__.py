"""The whole stack on one machine: Postgres, MLflow with roles, Prefect, a worker; each with a log, started and stopped
by what is noted of it. Nothing here is needed by a run."""
