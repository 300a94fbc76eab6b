"""The bundle: the contract between export and service. Imports no torch."""
