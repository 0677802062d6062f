package postgres

import (
	"crypto/hmac"
	"crypto/pbkdf2"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"strings"
)

// maxIdentifier is how long a name may be, in bytes. The server cuts a longer
// one off, and it would then be another object's.
const maxIdentifier = 63

// quote puts a value into a statement.
func quote(verb, value string) (string, error) {
	switch {
	case strings.ContainsRune(value, 0):
		return "", fmt.Errorf("holds a zero byte")
	case verb == literalVerb:
		return literal(value), nil
	case len(value) > maxIdentifier:
		return "", fmt.Errorf("has %d bytes, and a name in PostgreSQL has at most %d", len(value), maxIdentifier)
	}
	return identifier(value), nil
}

func identifier(s string) string { return `"` + strings.ReplaceAll(s, `"`, `""`) + `"` }

// literal relies on standard_conforming_strings, which connections set.
func literal(s string) string { return "'" + strings.ReplaceAll(s, "'", "''") + "'" }

// iterations is PostgreSQL's own number. The password has 130 bits, which no
// number of iterations would add to.
const iterations = 4096

// verifier returns what the server stores for a password (RFC 5803). The password itself
// stays out of statements, and therefore out of the server's logs.
func verifier(password []byte) string {
	salt := make([]byte, 16)
	rand.Read(salt)
	salted, err := pbkdf2.Key(sha256.New, string(password), salt, iterations, sha256.Size)
	if err != nil {
		panic(err) // lengths are ours
	}
	stored := sha256.Sum256(mac(salted, "Client Key"))
	b64 := base64.StdEncoding.EncodeToString
	return fmt.Sprintf("SCRAM-SHA-256$%d:%s$%s:%s", iterations, b64(salt), b64(stored[:]), b64(mac(salted, "Server Key")))
}

func mac(key []byte, text string) []byte {
	h := hmac.New(sha256.New, key)
	h.Write([]byte(text))
	return h.Sum(nil)
}
