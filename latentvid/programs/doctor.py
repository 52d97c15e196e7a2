"""Says what this machine can do, and which shipped configuration it can train.

    latentvid doctor
    latentvid doctor --quick    # without the configurations, whose memory takes some seconds to count

Versions, processor and GPU, rates of fp32 and bf16 (measured), attention backends (each tried), memory, disk, FFmpeg,
and the line that starts a training here.
"""

from ..command_line import Parser
from ..errors import user_errors


@user_errors()
def main() -> None:
    parser = Parser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="leave the configurations out")
    parser.add_argument("--device", help="cuda, cpu, ... (default: cuda where there is one)")
    args = parser.parse_args()
    # after the options are read: --help and wrong ones are answered at once
    from ..doctor import report

    report(lambda line: print(line, flush=True), args.device, not args.quick)
