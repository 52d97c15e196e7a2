"""Scores clips by VBench's dimensions, over its prompts, and writes its results' file.

    python -m latentvid.evaluation.vbench CLIPS --prompts VBench_full_info.json --weights DIR [--dimensions NAME ...]
    python -m latentvid.evaluation.vbench --table prompts.jsonl --prompts VBench_full_info.json

The first scores every clip of a prompt by the dimensions that the prompt is meant for. The second writes the prompts as
a table for inference/t2v.py --prompts, five seeds each, with the names that VBench expects.
"""

from __future__ import annotations

from pathlib import Path

from ...command_line import Parser
from ...errors import UserError, user_errors


@user_errors()
def main() -> None:
    parser = Parser(prog="python -m latentvid.evaluation.vbench", description=__doc__)
    add = parser.add_argument
    add("clips", nargs="?", type=Path, metavar="CLIPS", help="folder of the clips")
    add("--prompts", type=Path, required=True, help="VBench_full_info.json, or a text of one prompt a line")
    add("--dimensions", nargs="+", metavar="NAME", help="default: all of the prompts' whose networks are available")
    add("--weights", type=Path, metavar="DIR", help="folder of vbench/, clip/, raft/ (docs/evaluation.md)")
    add("--out", type=Path, default=Path("vbench"), help="folder of the results (default vbench)")
    add("--name", default="results", help="of the run, in the file's name (default results)")
    add("--table", type=Path, help="write the prompts as a table for inference/t2v.py, and nothing else")
    args = parser.parse_args()
    if (args.clips is None) == (args.table is None):
        raise UserError("give CLIPS, or --table FILE")
    from ...files import check_target, write_whole
    from .prompts import read_prompts, table_of

    prompts = read_prompts(args.prompts)
    if args.table is not None:
        check_target(args.table, "--table")
        write_whole(args.table, table_of(prompts))
        print(f"{args.table}: {len({prompt.text for prompt in prompts})} prompts")
        return
    from .scoring import score_folder, text_of, write_results

    found = score_folder(args.clips, prompts, args.weights, args.dimensions, args.out / "rows")
    file = write_results(found.results, args.out, args.name)
    print(text_of(found))
    print(file)


if __name__ == "__main__":
    main()
