"""Writes the reports of a run, for people and programs: HTML with plots, Markdown, JUnit, JSON."""
