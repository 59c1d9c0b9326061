"""Keep the copies that MONAI looks for at a bundle's root identical to what is edited in its ``configs/``.

``python -m monai.bundle run --config_file bundles/<name>/train.json`` reads ``metadata.json`` and ``logging.conf``
beside the configuration, while ``monai.bundle.load``, MONAI Label and MONAI Deploy read ``configs/``.

    python -m medcoarse.bundle_files bundles/les_av
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

MIRRORED = ("train.json", "metadata.json", "logging.conf")


def sync(bundle: Path) -> list[str]:
    """Copy the mirrored files of ``configs/`` to the bundle's root; return the names of those that differed.

    Raises:
        FileNotFoundError: the folder is no bundle.

    Example:
        >>> import tempfile
        >>> root = Path(tempfile.mkdtemp())
        >>> (root / "configs").mkdir()
        >>> for name in MIRRORED:
        ...     _ = (root / "configs" / name).write_text(name)
        >>> sync(root), sync(root)
        (['train.json', 'metadata.json', 'logging.conf'], [])
    """
    if not (bundle / "configs").is_dir():
        raise FileNotFoundError(f"{bundle} is no bundle: it has no folder configs")
    changed = []
    for name in MIRRORED:
        source, copy = bundle / "configs" / name, bundle / name
        if not copy.exists() or copy.read_bytes() != source.read_bytes():
            shutil.copyfile(source, copy)
            changed.append(name)
    return changed


if __name__ == "__main__":
    for argument in sys.argv[1:]:
        print(argument, *(sync(Path(argument)) or ["is in sync"]))
