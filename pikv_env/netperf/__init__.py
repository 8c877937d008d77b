"""Hardware profiles from published tables: links are fitted, GPU constants come from data sheets.

python -m pikv_env.netperf TABLES VIDUR --out FOLDER
"""
