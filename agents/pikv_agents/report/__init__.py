"""Reports: `summary.json` to one self-contained `report.html`, to figures and to terminal tables."""
