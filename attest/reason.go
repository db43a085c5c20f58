package attest

import "slices"

// Kind says what a refusal means to a client. The same five on every door;
// sds/ra alone turns them into gRPC codes.
type Kind uint8

// The kinds.
const (
	KindUnauthenticated Kind = iota + 1 // token, live pod, node authorisation
	KindForbidden                       // images, entitlement
	KindInvalid                         // the request itself
	KindLimited                         // the caller's own bucket, streams, names
	KindUnavailable                     // ours: overload, API server, registry
)

// String returns the name used in documents and metrics.
func (k Kind) String() string {
	switch k {
	case KindUnauthenticated:
		return "unauthenticated"
	case KindForbidden:
		return "forbidden"
	case KindInvalid:
		return "invalid"
	case KindLimited:
		return "limited"
	case KindUnavailable:
		return "unavailable"
	}
	return "none"
}

// Reason is why something was refused. The set is closed: the table below is
// at once the metric label, the ledger's field and the documents' page.
type Reason uint8

// The reasons. Their meaning and mend stand in the table.
const (
	TokenMissing Reason = iota + 1
	TokenMalformed
	TokenKeyUnknown
	TokenSignatureInvalid
	TokenExpired
	TokenNotYetValid
	TokenAudienceWrong
	TokenRejected
	TokenNotServiceAccount
	TokenUnbound
	ClusterUnknown
	PodGone
	PodReplaced
	PodTerminating
	PodFinished
	PodAccountMismatch
	NodeMismatch
	AccountReplaced
	SourceAddressForeign
	IdentityNotOwn

	ImageUnsigned
	ImageSignatureInvalid
	ImageNoPolicy
	ImagePolicyFailed
	ImagePolicyUnusable
	ImageIDUnknown
	ImageReferenceInvalid
	ImageTagRefused
	ImageNotFound

	ConnectionNotTLS
	HandshakeFailed
	RequestMalformed
	RequestTooLarge
	CSRMalformed
	CSRSignatureInvalid
	CSRNameForeign
	CSRExtensionRefused
	CSRKeyRefused
	LifetimeInvalid

	CallerRateExceeded
	CallerStreamsExceeded
	NamesExceeded

	Overloaded
	ShuttingDown
	CredentialEnding
	ViewNotSynced
	APIServerAway
	ReviewsBusy
	PodLookupBusy
	RegistryAway
	EvidencePending
	LedgerUnwritable
	AuthorityNotReady
	IssuerEnding
	ReaderTooSlow
	InternalError
	reasonEnd
)

// ReasonInfo is one row of the table.
type ReasonInfo struct {
	Reason  Reason
	Name    string
	Kind    Kind
	Meaning string
	Mend    string
}

// Reasons returns the whole table, in the order of the constants.
func Reasons() []ReasonInfo { return slices.Clone(reasonTable[1:]) }

// String returns the reason's name.
func (r Reason) String() string { return r.info().Name }

// Kind returns what the reason means to a client.
func (r Reason) Kind() Kind { return r.info().Kind }

// Mend returns what whoever reads the refusal can do.
func (r Reason) Mend() string { return r.info().Mend }

func (r Reason) info() ReasonInfo {
	if r >= reasonEnd {
		return reasonTable[0]
	}
	return reasonTable[r]
}
