"""Combine trained runs. As a Ray job, from the root of the project:

ray job submit --working-dir . -- python jobs/ensemble.py s3://bucket/runs/moe-8 s3://bucket/runs/moe-32 --out s3://bucket/runs/both
"""

import sys

from mmray.cli import main

if __name__ == "__main__":
    sys.argv.insert(1, "ensemble")
    main()
