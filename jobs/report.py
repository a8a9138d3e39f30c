"""Write the page of runs. As a Ray job, from the root of the project:

ray job submit --working-dir . -- python jobs/report.py s3://bucket/runs/quickstart-moe
"""

import sys

from mmray.cli import main

if __name__ == "__main__":
    sys.argv.insert(1, "report")
    main()
