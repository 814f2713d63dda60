"""Pages of sliders, figures and plots, and their scripts; report/assets has what all pages have in common."""
