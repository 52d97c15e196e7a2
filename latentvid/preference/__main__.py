"""Makes tables of pairs for preference tuning.

[accelerate launch] -m latentvid.preference sample --model MODEL --prompts FILE --output DIR
python -m latentvid.preference label DIR/a DIR/b --score NAME ... --out pairs.jsonl
python -m latentvid.preference choices PAGE choices-*.json --out pairs.jsonl
"""

from ..commands import preference

if __name__ == "__main__":
    preference()
