package audit

import _ "embed"

// Schema is the JSON Schema (2020-12) of a record's form.
//
//go:embed schema/record.v1.json
var Schema []byte
