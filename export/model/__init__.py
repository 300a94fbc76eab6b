"""The model under test: any module with its samples."""
