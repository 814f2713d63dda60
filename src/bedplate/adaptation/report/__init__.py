"""From outcomes to report.json and report.html."""
