"""What Prometheus and Grafana are given: scraping, rules with their tests, and a dashboard."""
