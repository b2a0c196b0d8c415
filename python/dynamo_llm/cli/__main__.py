"""`python -m dynamo_llm.cli`: the same as `kvbm`."""

from dynamo_llm.cli import main

main()
