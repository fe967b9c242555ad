"""MLflow: versions, their folders, the ledger, signatures.

Who is champion is decided above; no other package below it calls MLflow.
"""
