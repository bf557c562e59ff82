"""The matrix: the same calls over versions, families, dtypes and Pythons, held against a reference."""

from orchestrator.matrix.bisect import Bisection, bisect
from orchestrator.matrix.compare import Difference, Tolerance, compare
from orchestrator.matrix.run import CellResult, MatrixResult, Runner, run_matrix
from orchestrator.matrix.schema import Cell, MatrixFile, axis_values, expand, matrix_schema, read_matrix

__all__ = [
    "Bisection", "bisect",
    "Difference", "Tolerance", "compare",
    "CellResult", "MatrixResult", "Runner", "run_matrix",
    "Cell", "MatrixFile", "axis_values", "expand", "matrix_schema", "read_matrix",
]  # fmt: skip
