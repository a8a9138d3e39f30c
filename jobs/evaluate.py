"""Score trained runs on a split. As a Ray job, from the root of the project:

ray job submit --working-dir . -- python jobs/evaluate.py s3://bucket/runs/quickstart-moe
"""

import sys

from mmray.cli import main

if __name__ == "__main__":
    sys.argv.insert(1, "evaluate")
    main()
