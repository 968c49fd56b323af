"""What the site takes from elsewhere in the repository: the pictures of the benchmarks."""

from pathlib import Path

from mkdocs.structure.files import File, Files


def on_files(files: Files, config) -> Files:
    """Adds them where `performance.md`, which is the benchmarks' README, looks for them."""
    results = Path(config.config_file_path).parent / 'benchmarks' / 'results'
    for path in sorted(results.glob('*.png')):
        files.append(File.generated(config, f'results/{path.name}', abs_src_path=str(path)))
    return files
