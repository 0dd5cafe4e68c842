"""The ledger: run folders, locks, signatures, plans. Imports no torch."""
