#!/bin/sh
# The bill of materials of an installed environment, as CycloneDX: deploy/images/sbom.sh [PYTHON] [FILE]
# For an image: deploy/images/build.sh sbom IMAGE FOLDER. Nothing is installed and nothing is asked of the network.
set -eu
here=$(cd "$(dirname "$0")/../.." && pwd)
python=${1:-$here/.venv/bin/python}
file=${2:-$here/var/sbom.json}
mkdir -p "$(dirname "$file")"
"${CYCLONEDX:-$here/.venv/bin/cyclonedx-py}" environment --output-reproducible --validate --output-file "$file" "$python"
echo "$file"
