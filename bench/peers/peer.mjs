// What the programs that use llama.cpp's library share.
import process from 'node:process';

// Ends the program with a message in its name.
export function failAs(program) {
  return (message, status = 1) => {
    console.error(`${program}: ${message}`);
    process.exit(status);
  };
}

export async function importPeer(fail) {
  try {
    return await import('node-llama-cpp');
  } catch (error) {
    if (error.code !== 'ERR_MODULE_NOT_FOUND') throw error;
    return fail('the package node-llama-cpp is not installed; run `npm install` in bench/peers');
  }
}
