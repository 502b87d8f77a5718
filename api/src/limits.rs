//! Bounds on what one object may cost, each with its reason (I11).

/// Largest request body that is decoded. Upstream's limit; a few times what one Raft proposal may carry.
pub const BODY_BYTES_MAX: usize = 3 * 1024 * 1024;

/// Deepest nesting of lists and objects. Decoders recurse, so this bounds their stack; CRD schemas, the deepest real
/// objects, stay below 100.
pub const DEPTH_MAX: usize = 128;

/// Most values (members and elements) in one decoded object. A two-byte protobuf element or a three-byte JSON one becomes
/// some hundred bytes of tree: without this bound 3 MiB of input would cost gigabytes.
pub const VALUES_MAX: usize = 400_000;

/// Most unknown or duplicate fields reported for one body; the answer must stay far below the size of the question.
pub const FIELD_REPORTS_MAX: usize = 100;

/// Longest field path in such a report, in bytes.
pub const FIELD_PATH_MAX: usize = 1024;

/// Most YAML anchors and aliases in a body. Manifests use a handful; expansion is bounded by [`VALUES_MAX`] as well.
pub const YAML_ALIASES_MAX: usize = 1_000;

/// Most bytes of an answer's excerpt of a body that could not be read.
pub const EXCERPT_BYTES_MAX: usize = 30;

/// Most operations in one JSON patch. Upstream's limit.
pub const JSON_PATCH_OPERATIONS: usize = 10_000;

/// Most bytes that the `copy` operations of one JSON patch may add: each can double the document. Upstream's limit, the
/// size of a body.
pub const JSON_PATCH_COPY_BYTES: usize = BODY_BYTES_MAX;

/// Most elements that the operations of one JSON patch may push aside in lists: an insertion at the head of a list of
/// [`VALUES_MAX`] moves megabytes, ten thousand of them keep a processor for a minute. This much takes less than a second,
/// and lets a list of 8,000 be removed from its head one by one.
pub const JSON_PATCH_SHIFTS: usize = 32_000_000;

/// Longest text of one error answer. Texts quote what was sent, which may be as long as a body.
pub const MESSAGE_BYTES_MAX: usize = 16 * 1024;

/// Most errors that validation reports for one object: more than anybody reads, and a bound on the answer, in which each
/// error takes some hundred bytes where its cause took ten.
pub const FIELD_ERRORS_MAX: usize = 200;
