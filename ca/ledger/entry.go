package ledger

import (
	"crypto/sha256"
	"encoding/hex"
	"time"
)

// Intent is written, and durable, before the key is used: from then on the
// certificate may exist.
type Intent struct {
	ID     string    `json:"id"` // of the request; the caller was told it too
	Time   time.Time `json:"time"`
	Serial string    `json:"serial"` // lower-case hex
	// Identity is the SPIFFE ID, or the names of a certificate of our own.
	Identity  string    `json:"identity"`
	Cluster   string    `json:"cluster,omitempty"`
	Namespace string    `json:"namespace,omitempty"`
	Pod       string    `json:"pod,omitempty"`
	PodUID    string    `json:"podUID,omitempty"`
	Node      string    `json:"node,omitempty"`
	Door      string    `json:"door"`
	Method    string    `json:"method,omitempty"`
	Authority string    `json:"authority"` // issuing CA, subject key id in hex
	Root      string    `json:"root"`
	NotBefore time.Time `json:"notBefore"`
	NotAfter  time.Time `json:"notAfter"`
	KeySHA256 string    `json:"keySHA256"` // of the SubjectPublicKeyInfo
	TBSSHA256 string    `json:"tbsSHA256"` // of the to-be-signed certificate
	// Images are the decisions, each that is another one once, at most [MaxImages].
	Images []Image `json:"images,omitempty"`
	// MoreImages is how many decisions there were beyond, and ImagesSHA256 the
	// hash of all of them (JSON, one a line), so that what was decided can be
	// shown all the same.
	MoreImages   int    `json:"moreImages,omitempty"`
	ImagesSHA256 string `json:"imagesSHA256,omitempty"`
	Provisional  bool   `json:"provisional,omitempty"`
}

// MaxImages bounds the images in one [Intent]: who writes a pod chooses how many
// it has, and must not choose how much disk a certificate takes.
const MaxImages = 16

// Image is what was decided of one container's image, and of Alike further
// containers with the same one.
type Image struct {
	Container string   `json:"container"`
	Alike     int      `json:"alike,omitempty"`
	Image     string   `json:"image"`
	Digest    string   `json:"digest,omitempty"`
	Verdict   string   `json:"verdict"`
	Reason    string   `json:"reason,omitempty"`
	Policies  []string `json:"policies,omitempty"`
	Authority string   `json:"authority,omitempty"`
	Signer    string   `json:"signer,omitempty"`
}

// Statuses of an [Outcome].
const (
	Issued    = "issued"
	Abandoned = "abandoned" // the caller left before the signature
	Failed    = "failed"    // the signature could not be made
)

// Outcome says what became of an intent. An intent without one may have been
// issued.
type Outcome struct {
	ID         string    `json:"id"`
	Time       time.Time `json:"time"`
	Serial     string    `json:"serial"`
	Status     string    `json:"status"`
	CertSHA256 string    `json:"certSHA256,omitempty"`
	Detail     string    `json:"detail,omitempty"`
}

// Refusal is one or more refusals of an authenticated caller, folded by
// identity, pod, reason and minute.
type Refusal struct {
	ID        string    `json:"id"` // of the first
	Time      time.Time `json:"time"`
	Last      time.Time `json:"last"`
	Count     int       `json:"count"`
	Identity  string    `json:"identity"`
	Cluster   string    `json:"cluster"`
	Namespace string    `json:"namespace"`
	Pod       string    `json:"pod"`
	PodUID    string    `json:"podUID"`
	Node      string    `json:"node,omitempty"`
	Door      string    `json:"door"`
	Reason    string    `json:"reason"`
	Object    string    `json:"object,omitempty"`
	Detail    string    `json:"detail,omitempty"`
}

// HashImages is the hash of [Intent.ImagesSHA256], lower-case hex.
func HashImages(images []Image) string {
	h := sha256.New()
	var line []byte
	for n := range images {
		line = append(images[n].append(line[:0]), '\n')
		h.Write(line)
	}
	return hex.EncodeToString(h.Sum(nil))
}
