"""What a run says, for people and for machines: HTML with plots, Markdown, JUnit and JSON."""
