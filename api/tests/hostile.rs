//! Whatever arrives, decoders answer with a tree or a status.

use proptest::prelude::*;

use pintle_api::{
    codec::{self, FieldValidation, MAGIC},
    kinds::{KINDS, Kind},
};

fn any_kind() -> impl Strategy<Value = &'static Kind> {
    (0..KINDS.len()).prop_map(|i| &KINDS[i])
}

/// Bytes that look like protobuf more often than noise does: few tags, short lengths.
fn tagged() -> impl Strategy<Value = Vec<u8>> {
    let leaf = prop::collection::vec(any::<u8>(), 0..12);
    let field = |inner: BoxedStrategy<Vec<u8>>| {
        (1u8..16, inner).prop_map(|(number, bytes)| {
            let mut out = vec![number << 3 | 2, bytes.len().min(127) as u8];
            out.extend(bytes.into_iter().take(127));
            out
        })
    };
    leaf.prop_recursive(5, 128, 6, move |inner| {
        prop::collection::vec(field(inner), 0..6).prop_map(|fields| fields.concat())
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn noise_never_panics(kind in any_kind(), body in prop::collection::vec(any::<u8>(), 0..200)) {
        for media_type in [codec::JSON, codec::YAML, codec::PROTOBUF] {
            let _ = codec::decode(kind, Some(media_type), &body, FieldValidation::Strict);
        }
        let _ = codec::decode_any_protobuf(&[MAGIC, &body].concat());
    }

    #[test]
    fn plausible_protobuf_never_panics_and_settles(kind in any_kind(), raw in tagged()) {
        let mut body = MAGIC.to_vec();
        body.push(0x12);
        body.extend(varint(raw.len()));
        body.extend(&raw);
        if let Ok(decoded) = codec::decode(kind, Some(codec::PROTOBUF), &body, FieldValidation::Strict) {
            let again = codec::decode_any_protobuf(&codec::encode_protobuf(kind, &decoded.object)).unwrap();
            prop_assert_eq!(again, decoded.object);
        }
    }

    /// A real object with some bytes changed, cut or doubled reaches far deeper than noise.
    #[test]
    fn damaged_protobuf_never_panics(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        end in any::<prop::sample::Index>(),
        cut in any::<bool>(),
    ) {
        let pod = pintle_api::kinds::by_resource("", "v1", "pods").unwrap();
        let object = codec::decode(pod, None, POD.as_bytes(), FieldValidation::Strict).unwrap().object;
        let mut body = codec::encode_protobuf(pod, &object).to_vec();
        for (at, byte) in changes {
            let at = at.index(body.len());
            body[at] = byte;
        }
        if cut {
            body.truncate(end.index(body.len()));
        }
        if let Ok(decoded) = codec::decode(pod, Some(codec::PROTOBUF), &body, FieldValidation::Strict) {
            let again = codec::conform(pod, decoded.object.clone(), FieldValidation::Ignore).unwrap().object;
            let _ = codec::encode_protobuf(pod, &again);
        }
    }

    #[test]
    fn any_tree_is_conformed_or_refused(kind in any_kind(), tree in tree(), words in prop::collection::vec(0usize..40, 0..4)) {
        // The tree is put below real field names, so that it meets real types.
        let mut body = tree;
        let mut message = kind.schema();
        let mut names = Vec::new();
        for word in words {
            let Some(m) = message else { break };
            let fields: Vec<_> = m.flat().collect();
            if fields.is_empty() { break }
            let field = fields[word % fields.len()];
            names.push(field.json);
            message = field.message();
        }
        for name in names.into_iter().rev() {
            body = serde_json::json!({ name: body });
        }
        if let Ok(decoded) = codec::conform(kind, body, FieldValidation::Ignore) {
            let _ = codec::encode_protobuf(kind, &decoded.object);
            let again = codec::conform(kind, decoded.object.clone(), FieldValidation::Strict).unwrap().object;
            prop_assert_eq!(again, decoded.object);
        }
    }

    #[test]
    fn a_tree_of_wrong_types_can_be_encoded(kind in any_kind(), tree in tree()) {
        let _ = codec::encode_protobuf(kind, &tree);
    }
}

const POD: &str = r#"{"metadata":{"name":"web","labels":{"app":"web"},"creationTimestamp":"2026-01-02T03:04:05Z",
    "managedFields":[{"manager":"m","fieldsV1":{"f:metadata":{}}}]},"spec":{"containers":[{"name":"c","image":"i",
    "ports":[{"containerPort":80}],"env":[{"name":"A","valueFrom":{"resourceFieldRef":{"resource":"limits.cpu"}}}],
    "resources":{"limits":{"cpu":"100m","memory":"1Gi"}},"livenessProbe":{"httpGet":{"port":"http"},"periodSeconds":3}}],
    "volumes":[{"name":"v","emptyDir":{}},{"name":"w","configMap":{"name":"x","defaultMode":420}}],
    "tolerations":[{"operator":"Exists","tolerationSeconds":300}],"ephemeralContainers":[{"name":"e"}]},
    "status":{"phase":"Running","conditions":[{"type":"Ready","status":"True"}]}}"#;

fn varint(mut value: usize) -> Vec<u8> {
    let mut out = Vec::new();
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
    out
}

fn tree() -> impl Strategy<Value = serde_json::Value> {
    let name =
        prop::sample::select(vec!["spec", "metadata", "name", "status", "items", "template", "a", "labels", "data"]);
    let leaf = prop_oneof![
        Just(serde_json::Value::Null),
        any::<bool>().prop_map(Into::into),
        any::<i64>().prop_map(Into::into),
        any::<f64>().prop_map(Into::into),
        "\\PC{0,12}".prop_map(Into::into),
        Just("2026-01-02T03:04:05Z".into()),
        Just("100m".into()),
    ];
    leaf.prop_recursive(4, 40, 5, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Into::into),
            prop::collection::btree_map(name.clone(), inner, 0..4).prop_map(|map| map
                .into_iter()
                .map(|(k, v)| (k.to_owned(), v))
                .collect::<serde_json::Map<_, _>>()
                .into()),
        ]
    })
}

/// Found by the property above: a map entry without value and one with an empty list came out different.
#[test]
fn an_empty_list_in_a_map_settles() {
    let kind = pintle_api::kinds::by_resource("certificates.k8s.io", "v1", "certificatesigningrequests").unwrap();
    for entry in [&[0x0a, 0x00][..], &[0x0a, 0x00, 0x12, 0x00][..]] {
        // spec (1) . extra (6) . entry
        let spec = [&[0x32, entry.len() as u8][..], entry].concat();
        let raw = [&[0x12, spec.len() as u8][..], &spec].concat();
        let body = [MAGIC, &[0x12, raw.len() as u8], &raw[..]].concat();
        let decoded = codec::decode(kind, Some(codec::PROTOBUF), &body, FieldValidation::Strict).unwrap();
        assert_eq!(decoded.object["spec"]["extra"], serde_json::json!({"": null}));
        let again = codec::decode_any_protobuf(&codec::encode_protobuf(kind, &decoded.object)).unwrap();
        assert_eq!(again, decoded.object);
    }
}
