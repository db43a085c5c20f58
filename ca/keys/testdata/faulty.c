/* A PKCS #11 module for tests: SoftHSM behind it, and faults in front. Each of
 * the functions below first reads the file that HALLMARK_FAULT names:
 *
 *   hang          wait until the file says something else
 *   NUMBER        return that code (CKR_...), for functions that use a session
 *   login NUMBER  return that code from C_Login alone
 *   flip          let C_Sign give a signature with one bit changed
 *   nothing else  go on
 *
 * Each C_Login is written down in HALLMARK_FAULT.logins, one byte for each. */
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "pkcs11go.h"

static CK_FUNCTION_LIST ours;
static CK_FUNCTION_LIST_PTR real;

static void fault(char *text, size_t size) {
	FILE *f = fopen(getenv("HALLMARK_FAULT"), "r");
	text[0] = 0;
	if (f == NULL) return;
	if (fgets(text, (int)size, f) == NULL) text[0] = 0;
	fclose(f);
}

static CK_RV meet(void) {
	char text[64];
	struct timespec tick = {0, 2000000};
	for (fault(text, sizeof text); strncmp(text, "hang", 4) == 0; fault(text, sizeof text)) nanosleep(&tick, NULL);
	return strtoul(text, NULL, 0);
}

static CK_RV sign_init(CK_SESSION_HANDLE s, CK_MECHANISM_PTR m, CK_OBJECT_HANDLE k) {
	CK_RV rv = meet();
	return rv ? rv : real->C_SignInit(s, m, k);
}

static CK_RV sign(CK_SESSION_HANDLE s, CK_BYTE_PTR d, CK_ULONG n, CK_BYTE_PTR sig, CK_ULONG_PTR len) {
	char text[64];
	CK_RV rv = real->C_Sign(s, d, n, sig, len);
	fault(text, sizeof text);
	if (rv == CKR_OK && sig != NULL && strncmp(text, "flip", 4) == 0) sig[*len - 1] ^= 1;
	return rv;
}

static CK_RV find_init(CK_SESSION_HANDLE s, CK_ATTRIBUTE_PTR t, CK_ULONG n) {
	CK_RV rv = meet();
	return rv ? rv : real->C_FindObjectsInit(s, t, n);
}

static CK_RV generate(CK_SESSION_HANDLE s, CK_MECHANISM_PTR m, CK_ATTRIBUTE_PTR pub, CK_ULONG np, CK_ATTRIBUTE_PTR priv, CK_ULONG nv, CK_OBJECT_HANDLE_PTR a, CK_OBJECT_HANDLE_PTR b) {
	char text[64];
	struct timespec tick = {0, 2000000};
	CK_RV rv = real->C_GenerateKeyPair(s, m, pub, np, priv, nv, a, b);
	/* The key is there, and the answer is late. */
	for (fault(text, sizeof text); strncmp(text, "make", 4) == 0; fault(text, sizeof text)) nanosleep(&tick, NULL);
	return rv;
}

static CK_RV login(CK_SESSION_HANDLE s, CK_USER_TYPE u, CK_UTF8CHAR_PTR p, CK_ULONG n) {
	char text[64], name[4096];
	FILE *f;
	snprintf(name, sizeof name, "%s.logins", getenv("HALLMARK_FAULT"));
	if ((f = fopen(name, "a")) != NULL) {
		fputc('.', f);
		fclose(f);
	}
	fault(text, sizeof text);
	if (strncmp(text, "login ", 6) == 0) return strtoul(text + 6, NULL, 0);
	return real->C_Login(s, u, p, n);
}

CK_RV C_GetFunctionList(CK_FUNCTION_LIST_PTR_PTR list) {
	CK_C_GetFunctionList get;
	void *lib = dlopen(getenv("HALLMARK_SOFTHSM"), RTLD_NOW | RTLD_LOCAL);
	if (lib == NULL || (get = (CK_C_GetFunctionList)dlsym(lib, "C_GetFunctionList")) == NULL || get(&real) != CKR_OK) return CKR_GENERAL_ERROR;
	ours = *real;
	ours.C_SignInit = sign_init;
	ours.C_Sign = sign;
	ours.C_FindObjectsInit = find_init;
	ours.C_GenerateKeyPair = generate;
	ours.C_Login = login;
	*list = &ours;
	return CKR_OK;
}
