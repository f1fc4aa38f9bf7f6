"""The promises that Feast's own Milvus store (0.67) is known to break: test -> what happens there."""

STOCK: dict[str, str] = {
    # Reading
    "test_rows_older_than_the_ttl_are_missing": "TTL is ignored online",
    "test_event_times_come_back_to_the_microsecond": "event times go through floats, and some lose a microsecond",
    "test_the_event_loop_reads_the_same": "there is no asynchronous read",
    "test_nothing_is_created_on_read": "a read makes the collection that is missing",
    # Types
    "test_booleans_are_booleans": "booleans are stored as text and cannot be read",
    "test_bytes_are_bytes": "documents' bytes cannot be written, other bytes come back in base64",
    "test_timestamps_are_timestamps": "timestamps cannot be written",
    "test_texts_of_other_kinds_keep_their_kind": "UUIDs and decimals cannot be written",
    "test_lists_keep_order_and_duplicates": "every list of numbers is taken for a vector of the store's one dim",
    "test_nulls_are_null": "null numbers are stored as empty text and cannot be read",
    "test_null_lists_are_not_empty_lists": "every list of numbers is taken for a vector of the store's one dim",
    "test_a_feature_that_a_row_does_not_have_is_null": "a missing number is stored as empty text and cannot be read",
    "test_maps_structs_sets_and_nested_lists_come_back": "lists of structs, sets and nested lists cannot be written",
    # Writing
    "test_an_older_row_does_not_overwrite_a_newer_one": "the last to arrive wins",
    "test_of_equal_events_the_one_made_later_wins": "the last to arrive wins",
    "test_a_row_replaces_all_of_the_older_one": "a missing number is stored as empty text and cannot be read",
    "test_a_wrong_vector_is_refused_and_nothing_is_written": "wrong vectors are stored, or refused without the row's key",
    "test_the_event_loop_writes_too": "there is no asynchronous write",
    "test_writing_to_a_view_that_nobody_applied_creates_nothing": "a write makes the collection that is missing",
    # Views
    "test_views_of_three_dims_metrics_and_indexes_live_in_one_database": "the whole store has one dim",
    "test_a_view_is_dropped_by_its_exact_name": "dropping a view drops the one whose name ends in _v2 too",
    "test_an_added_feature_is_added_and_rows_survive": "a collection never changes: reads of the new feature fail",
    "test_a_changed_vector_is_not_ignored": "a changed dim or metric is ignored",
    # Searching
    "test_documents_come_best_first_with_their_own_features": "the query comes back in place of the row's own vector",
    "test_documents_have_typed_features": "features are text, and null numbers cannot be read",
    "test_numbers_are_compared_as_numbers": "numbers are stored as text and compared as such",
    "test_a_search_creates_nothing": "a search makes the collection that is missing",
}
