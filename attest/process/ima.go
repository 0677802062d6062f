package process

import (
	"bufio"
	"errors"
	"io"
	"os"
	"strings"
	"sync"
)

const (
	imaFile    = "/sys/kernel/security/ima/ascii_runtime_measurements"
	maxIMA     = 1 << 20  // digests that are kept
	maxIMALine = 64 << 10 // bytes
)

// A measurements holds the digests of files that the kernel has measured since
// boot (IMA). The kernel only appends to its list.
type measurements struct {
	mu     sync.Mutex // guards the fields below
	list   *bufio.Reader
	sha256 map[string]bool // hexadecimal
}

// theseMeasurements opens the kernel's list, or returns nil if it has none.
func theseMeasurements() *measurements {
	f, err := os.Open(imaFile)
	if err != nil {
		return nil
	}
	return newMeasurements(f)
}

func newMeasurements(list io.Reader) *measurements {
	return &measurements{list: bufio.NewReaderSize(list, maxIMALine), sha256: make(map[string]bool)}
}

// has reports whether the kernel has measured a file with that digest.
func (m *measurements) has(sum string) (bool, error) {
	if m == nil || sum == "" {
		return false, nil
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	for !m.sha256[sum] {
		line, err := m.list.ReadSlice('\n')
		if errors.Is(err, io.EOF) {
			return false, nil // reading goes on here when the list has grown
		}
		if err != nil {
			return false, err
		}
		if measured := parseMeasurement(string(line)); measured != "" && len(m.sha256) < maxIMA {
			m.sha256[measured] = true
		}
	}
	return true, nil
}

// parseMeasurement returns the SHA-256 in a line of the list, or "" for none:
// "10 TEMPLATE-DIGEST ima-ng sha256:FILE-DIGEST PATH". Templates of what is not
// a file (ima-buf) do not count.
func parseMeasurement(line string) string {
	fields := strings.SplitN(line, " ", 5)
	if len(fields) < 5 || fields[2] != "ima-ng" && fields[2] != "ima-sig" && fields[2] != "ima-modsig" {
		return ""
	}
	sum, ok := strings.CutPrefix(fields[3], "sha256:")
	if !ok || len(sum) != 64 || strings.Trim(sum, "0123456789abcdef") != "" || strings.Trim(sum, "0") == "" {
		return "" // all zero: a violation, measured while it was written to
	}
	return sum
}
