package door

import (
	"bytes"
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"
	"testing/iotest"
)

const signature = ";chunk-signature=ad80c730a21e5b8d04586a2213dd63b9a0e99e0e2307b0ade35a65485a288648\r\n"

func TestChunksAreSentWithoutTheirSignatures(t *testing.T) {
	t.Parallel()
	const content = "5" + signature + "tides\r\n" + "B" + signature + " turn\r\n\r\nat\r\n" + "0" + signature
	const trailer = "x-amz-checksum-crc32:AAAAAA==\r\nx-amz-trailer-signature:d81f\r\n"
	for _, tt := range []struct {
		content string
		framed  bool
		want    string
	}{
		{content + "\r\n", false, "tides turn\r\n\r\nat"},
		{content + strings.Replace(trailer, "\r\n", "\n\r\n", 1) + "\r\n", true, "5\r\ntides\r\nb\r\n turn\r\n\r\nat\r\n0\r\nx-amz-checksum-crc32:AAAAAA==\r\n\r\n"},
		{content + trailer + "\r\n", true, "5\r\ntides\r\nb\r\n turn\r\n\r\nat\r\n0\r\nx-amz-checksum-crc32:AAAAAA==\r\n\r\n"},
	} {
		for name, in := range map[string]io.Reader{"whole": strings.NewReader(tt.content), "byte by byte": iotest.OneByteReader(strings.NewReader(tt.content))} {
			c := &chunked{ReadCloser: io.NopCloser(in), framed: tt.framed}
			if got, err := io.ReadAll(c); err != nil || string(got) != tt.want {
				t.Errorf("%s: %q (%v), want %q", name, got, err, tt.want)
			}
		}
	}
}

func TestContentThatIsNotInItsChunksIsRefused(t *testing.T) {
	t.Parallel()
	for _, content := range []string{
		"", "tides", "5\r\ntides\r\n0\r\n\r\n", "5" + signature + "tides", "5" + signature + "tides!\r\n0" + signature + "\r\n",
		"5" + signature + "tide", "-5" + signature, "0" + signature, "0" + signature + "x: y\r\n\r\n", "0" + signature + "\r\nmore",
		"FFFFFFFFFFFFFFFF" + signature, "5;chunk-signature=x\ntides\r\n", "5;" + strings.Repeat("x", 8<<10),
	} {
		got, err := io.ReadAll(&chunked{ReadCloser: io.NopCloser(strings.NewReader(content))})
		if no := (*refusal)(nil); !errors.As(err, &no) || no.Status != http.StatusBadRequest {
			t.Errorf("%.60q is read as %q (%v)", content, got, err)
		}
	}
}

func FuzzChunked(f *testing.F) {
	f.Add([]byte("5"+signature+"tides\r\n0"+signature+"a:b\r\n\r\n"), true)
	f.Add([]byte("5"+signature+"tides\r\n0"+signature+"\r\n"), false)
	f.Fuzz(func(t *testing.T, content []byte, framed bool) {
		whole, err := io.ReadAll(&chunked{ReadCloser: io.NopCloser(bytes.NewReader(content)), framed: framed})
		slowly, errSlowly := io.ReadAll(&chunked{ReadCloser: io.NopCloser(iotest.OneByteReader(bytes.NewReader(content))), framed: framed})
		if (err == nil) != (errSlowly == nil) || err == nil && !bytes.Equal(whole, slowly) || len(whole) > len(content) {
			t.Errorf("%q is read as %q (%v), or %q (%v)", content, whole, err, slowly, errSlowly)
		}
	})
}
