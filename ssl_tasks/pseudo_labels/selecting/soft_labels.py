"""The rows of a selection as training reads them: with dense, sharpened probabilities, or with a label alone."""

from selftrain.ssl_tasks.pseudo_labels.looking.schema import Predictions
from selftrain.ssl_tasks.settings.pseudo_labels import SelectSettings

COLUMNS = (
    "sample_id, {position} AS position, label::INTEGER AS label, confidence, rank_in_class::INTEGER AS rank_in_class, "
    "copies::INTEGER AS copies, source"
)
# Nothing here fails or is null. But DuckDB writes a column as `required` where it happens to know that it has no nulls,
# which depends on how the table is cut into shards; of TRY it never knows.
FLAT = ", ".join(
    f"TRY({column}) AS {column}"
    for column in ("sample_id", "position", "label", "confidence", "rank_in_class", "copies", "source")
)
# A lambda's expression is computed for every element, so what is the same for all of a row comes before.
SOFT = """
    SELECT * EXCLUDE (powers, total), list_transform(powers, lambda power: (power / total)::FLOAT) AS probs
    FROM (
        SELECT *, list_sum(powers) AS total
        FROM (
            SELECT * EXCLUDE (dense), CASE source
                WHEN 'override' THEN list_transform(range({classes}), lambda number: (number = label)::INTEGER::DOUBLE)
                ELSE list_transform(dense, lambda prob: pow(prob, {exponent!r}))
            END AS powers
            FROM (
                SELECT {columns}, {dense} AS dense
                FROM chosen JOIN (SELECT file_index, file_row_number, {stored} FROM {table})
                USING (file_index, file_row_number)
            )
        )
    )
"""
# What the top k leave of 1 is spread over the other classes.
SPARSE = (
    "list_transform(range({classes}), lambda number: coalesce("
    "probs[list_position(classes, number::SMALLINT)], rest)::DOUBLE)"
)
STORED_OF_SPARSE = "probs, classes, greatest(0, 1 - list_sum(probs)) / {others} AS rest"


def output_rows(predictions: Predictions, settings: SelectSettings) -> str:
    """SQL over table `chosen`: the rows of selection.parquet, in no order."""
    columns = COLUMNS.format(position=predictions.position())
    if not settings.soft:
        return f"SELECT {FLAT} FROM (SELECT {columns} FROM chosen)"
    classes = len(predictions.classes)
    others = classes - predictions.description["stored_classes"]
    soft = SOFT.format(
        columns=columns,
        classes=classes,
        exponent=1 / settings.sharpen,
        table=predictions.table(),
        stored=STORED_OF_SPARSE.format(others=others) if predictions.sparse else "probs",
        dense=SPARSE.format(classes=classes) if predictions.sparse else "probs::DOUBLE[]",
    )
    return f"SELECT {FLAT}, probs FROM ({soft})"
